"""Names of other libraries over ours, so that their users' projects run where those libraries cannot."""
