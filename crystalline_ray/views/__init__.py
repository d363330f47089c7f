"""What a person looks at without training: the machine, the tree, the crystal."""
