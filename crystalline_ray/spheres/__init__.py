"""The tree of kissing spheres: who coordinates whom, and what each one does. No engine in here."""
