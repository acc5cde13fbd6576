"""A recurrent layer in one direction: its specification, the backends that compute it, and the choice of one."""
