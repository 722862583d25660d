"""Facts about the running kernel and this process's privileges: yes, no, or could not tell."""
