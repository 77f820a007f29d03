"Faults and made inputs by the thousand, each with its right answer: `python tests/campaign --minutes 60`"
