"""What this machine and this installation can do: measured and looked up, nothing changed, nothing sent.

data in: the machine → out: findings, each with what to do about it. Training does not read them.
"""
