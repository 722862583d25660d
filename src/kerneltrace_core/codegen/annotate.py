"""The annotation of a field: what a type checker sees, and what a session compares with BTF."""

from __future__ import annotations

from dataclasses import dataclass, field

from kerneltrace_core.btf.layout import ArrayLayout, FieldLayout, Scalar, StructLayout, TypeLayout
from kerneltrace_core.codegen.choose import Chosen

__all__ = ["Annotator"]

WHOLE = (1, 2, 4, 8)
FLOATS = {4: "f32", 8: "f64"}
# Beyond this many dimensions an array is read as its bytes.
MOST_DIMENSIONS = 8


@dataclass
class Annotator:
    """Write annotations; ``used`` collects the names that must be imported. Not thread-safe."""

    chosen: Chosen
    used: set[str] = field(default_factory=set)

    def field(self, struct: str, member: FieldLayout) -> str:
        """Return the annotation of a member of the C struct ``struct``."""
        layout, inside = member.type, f"{struct}_{member.name}"
        if isinstance(layout, ArrayLayout):
            return self._array(layout, inside)
        return self._single(layout, inside)

    def value(self, layout: TypeLayout, inside: str) -> str:
        """Return what Python sees of a type, without its size."""
        if isinstance(layout, StructLayout):
            return self.chosen.class_of(layout, inside)
        if isinstance(layout, ArrayLayout):
            plain = self._text_or_bytes(layout)
            return plain or f"tuple[{self.value(layout.element, inside)}, ...]"
        if layout.values:
            return self.chosen.class_of(layout, inside)
        if layout.kind == "float":
            return "float" if layout.size in FLOATS else "bytes"
        return "bool" if layout.kind == "bool" else "int"

    def written(self, layout: TypeLayout, inside: str, *, or_read: bool = False) -> str:
        """Return what a type can be written from; ``or_read``: also what is read."""
        if isinstance(layout, StructLayout):
            read = self.chosen.class_of(layout, inside)
            fields = self.chosen.fields_of(layout, inside)
            return f"{read} | {fields}" if or_read else fields
        if isinstance(layout, ArrayLayout) and not self._text_or_bytes(layout):
            element = self.written(layout.element, inside, or_read=True)
            return f"{self.use('Sequence')}[{element}]"
        return self.value(layout, inside)

    def _single(self, layout: TypeLayout, inside: str) -> str:
        if isinstance(layout, (StructLayout, ArrayLayout)):
            return self.value(layout, inside)
        if layout.kind == "float" and layout.size in FLOATS:
            return self.use(FLOATS[layout.size])
        if layout.size not in WHOLE or layout.kind in ("bool", "float") or layout.values:
            return self.value(layout, inside)
        prefix = "be" if layout.big_endian else "s" if layout.signed else "u"
        return self.use(f"{prefix}{8 * layout.size}")

    def _array(self, layout: ArrayLayout, inside: str) -> str:
        plain = self._text_or_bytes(layout)
        self.use("Annotated")
        if plain:
            return f"Annotated[{plain}, {self._shape(layout, inside)}]"
        return f"Annotated[{self.value(layout, inside)}, {self._shape(layout, inside)}]"

    def _shape(self, layout: TypeLayout, inside: str) -> str:
        """Return what is compared with BTF: ``Array(Array(s32, 5), 3)``."""
        if not isinstance(layout, ArrayLayout):
            return self._single(layout, inside)
        plain = self._text_or_bytes(layout)
        if plain == "str":
            return f"{self.use('Chars')}({layout.count})"
        if plain == "bytes":
            return f"{self.use('Bytes')}({layout.size})"
        return f"{self.use('Array')}({self._shape(layout.element, inside)}, {layout.count})"

    def _text_or_bytes(self, layout: ArrayLayout) -> str:
        """Return str or bytes where an array is that and no tuple, else nothing."""
        element = layout.element
        if isinstance(element, Scalar) and element.size == 1 and not element.big_endian:
            if element.kind == "char":
                return "str"
            if element.kind == "int" and not element.signed:
                return "bytes"
        dimensions = 0
        inner: TypeLayout = layout
        while isinstance(inner, ArrayLayout):
            dimensions += 1
            inner = inner.element
        size = element.size if isinstance(element, ArrayLayout) else inner.size
        return "bytes" if not size or dimensions > MOST_DIMENSIONS else ""

    def use(self, name: str) -> str:
        """Return a name of the library, which the module then imports."""
        self.used.add(name)
        return name
