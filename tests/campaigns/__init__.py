"""Campaigns: many random cases of one kind of trouble, counted.

    python -m tests.campaigns.kill --count 50 --seed 1 --seconds 600
    python -m tests.campaigns --short       all five, as continuous integration runs them

    kill      trainings and detections that signals end, and what the next run makes of them
    disk      full disks at every file that is written
    damage    damaged files of every kind that is read
    fuzz      generated content for every parser (needs Hypothesis)
    load      thousands of images, threads, two runs in one folder

Each prints its failures with the command that repeats them, and a last line
`tried N, right N, wrong N`; it exits with 0 only where nothing was wrong.
"""
