"""Views for people, without training: the machine, the tree, the crystal, reports of runs, and pictures."""
