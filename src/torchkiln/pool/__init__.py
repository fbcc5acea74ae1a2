"""One engine several times over: a replica for each GPU, or several that share the cores of the CPU, behind one callable."""
