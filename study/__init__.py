"""The study page, docs/study.html: the three columns row by row, and what each row becomes."""
