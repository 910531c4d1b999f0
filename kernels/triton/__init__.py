"""Triton kernels of the ops in ``wcse.kernels.ops``; imported only when one of them runs on a GPU.

Each file holds one op's kernel and its launcher. They know nothing of models or engines, and check nothing:
``ops.py`` does. They run on a CPU too, slowly, in Triton's interpreter (``TRITON_INTERPRET=1`` before import).
"""
