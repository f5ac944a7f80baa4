"""A campaign that looks for faults: kills, full disks, damaged files, hostile files, long runs.

``python -m torture`` runs every kind; docs/reliability.md says what is promised.
"""
