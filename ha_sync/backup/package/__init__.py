"""Backup packages: everything of a node in one file (``format``), its export, its check and its restore (R24).

Reading, packing, checking and staging run in a process of their own (``child``): they hash and compress for minutes,
and the copies of databases must be made where no SQLite connection is open (DESIGN 4.8). What must be all or nothing,
the change from the present data to that of the package, is in ``swap``; it runs in the engine and moves names only.
"""
