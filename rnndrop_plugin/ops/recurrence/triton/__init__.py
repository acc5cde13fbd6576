"""The recurrences as Triton kernels (backend ``"triton"``), for NVIDIA GPUs.

``cells`` has the equations of a step, forward and backward; ``product`` the product with the recurrent weights and
the barrier; ``loops`` one kernel a direction for the whole sequence; ``steps`` one kernel a step between products of
torch; ``tiles`` the table that chooses among them; ``backend`` calls them. Triton is imported only with the kernels.
"""
