"""Starting with the machine: the systemd unit of a home, and what the unit runs."""
