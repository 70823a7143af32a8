"""The campaign against detkit: every kind of file damaged, training killed at every moment.

Its rule: a command either does what was asked, or says in one line what is wrong (exit status 2) and leaves nothing
half-written; a run that was killed goes on to the same bits. test_fuzz.py and test_points.py are its short part; the
long one is `python -m tests.campaign`, see docs/campaign.md. A new kind of file is one entry of formats/, a new kind of
run one of runs.py.
"""
