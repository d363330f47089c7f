"""Pure mathematics of the crystal: frequency ranks as primes, spiral and lattice points, and lattice reduction."""
