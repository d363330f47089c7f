"""Every switch that comes of the lattice, one file each: arrays in, arrays out."""
