"""Join programs that another process has loaded: by fork, by pins, or handed over a socket."""
