# test_conformance.py runs the stand-ins inside the tree that it assembles
collect_ignore = ["standins"]
