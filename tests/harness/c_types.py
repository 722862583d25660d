"""C types of every kind: one source for BPF and for this machine's compiler."""

from __future__ import annotations

TYPES = r"""
#include <linux/types.h>

typedef __be32 address_t;
typedef char name_t[16];
typedef __u16 be16;
typedef struct { __u32 pid; __u32 tid; } task_id_t;
typedef _Bool flag_t;

enum color { RED = -1, GREEN, BLUE = 7 };
enum level { LOW = 1, HIGH = 3000000000 };
enum __attribute__((packed)) tiny { TINY_NONE = -2, TINY_ONE = 1 };
enum wide { NARROW = 1, HUGE = 1ULL << 40 };

struct point { __s16 x; __s16 y; };
struct key { __u32 pid; __u64 inode; };

struct scalars {
    char letter; signed char s8; unsigned char u8; __s16 s16; __u16 u16; __s32 s32; __u32 u32;
    __s64 s64; __u64 u64; flag_t flag; long word; void *any; struct point *to; const char **names;
    enum color color; enum level level; enum tiny tiny; enum wide wide; __int128 huge;
};
struct addresses { __be16 port; address_t v4; __be64 wide; be16 short_; __be32 many[4];
    const volatile address_t fixed; };
struct arrays { char comm[16]; name_t name; __u8 raw[6]; __s32 grid[3][5]; struct point path[4];
    char lines[2][8]; };
struct nested { struct key key; struct { __u8 a; __u32 b; } inside; task_id_t task;
    union { __u32 number; __u8 bytes[4]; } either; };
struct anonymous { __u8 kind; union { struct { __u32 v4; __u16 port; }; __u8 v6[16];
    union { __u64 deep; struct { __u32 low; __u32 high; }; }; }; __u8 last; };
union both { __u64 whole; struct { __u32 low; __u32 high; }; __u8 bytes[12]; };
struct bits { __u32 a : 3; __u32 b : 5; __u32 c : 20; __s32 d : 6; __u64 e : 40; __u8 f : 1;
    __u8 : 2; _Bool g : 1; enum level h : 3; __u32 : 0; __u16 i : 9; __be16 j : 4; };
struct __attribute__((packed)) packed { __u8 a; __u64 b; __u16 c; struct point d; __u32 e; };
struct __attribute__((packed)) packed_bits { __u8 a : 7; __u64 b : 60; __u32 c : 13; __s32 d : 30;
    __u8 e : 2; };
struct bits_between { __u16 before; struct { __u32 a : 12; __u32 b : 20; }; __u8 after; };
struct flexible { __u32 length; __u32 count; __u16 values[]; };
struct flexible_structs { __u64 length; struct point path[0]; };
struct keywords { __u32 class; __u32 from; __u32 None; __u32 match; };
struct empty { };
"""

STRUCTS = {
    "point": "x y",
    "key": "pid inode",
    "scalars": "letter s8 u8 s16 u16 s32 u32 s64 u64 flag word any to names "
    "color level tiny wide huge",
    "addresses": "port v4 wide short_ many fixed",
    "arrays": "comm name raw grid path lines",
    "nested": "key inside task either",
    "anonymous": "kind v4 port v6 deep low high last",
    "both": "whole low high bytes",
    "bits": "a b c d e f g h i j",
    "packed": "a b c d e",
    "packed_bits": "a b c d e",
    "bits_between": "before a b after",
    "flexible": "length count values",
    "flexible_structs": "length path",
    "keywords": "class from None match",
    "empty": "",
    "task_id_t": "pid tid",
}  # fmt: skip


def c_type(name: str) -> str:
    """Return how C calls one of STRUCTS."""
    if name.endswith("_t"):
        return name
    return f"union {name}" if name == "both" else f"struct {name}"


def bpf_source() -> str:
    """Return a source whose BTF has all of TYPES, in variables of its .bss."""
    rows = [f"{c_type(name)} var_{name};" for name in STRUCTS]
    return TYPES + "\n".join(rows) + "\n"
