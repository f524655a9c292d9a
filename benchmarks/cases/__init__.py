"""What ``benchmarks/run.py`` measures; every module has ``run(bench, folder)``."""
