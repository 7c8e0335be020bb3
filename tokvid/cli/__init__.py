"""The command line: the composition root, and the only place in ``tokvid`` that looks upward."""
