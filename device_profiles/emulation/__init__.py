"""Places that hold a process to a board and a link: control groups, namespaces, turns."""
