# the stand-ins are run by test_conformance.py, inside the tree that it assembles
collect_ignore = ["standins"]
