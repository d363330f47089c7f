"""The hosts of the spheres: one process, or Ray actors. Every engine gives the same bits."""
