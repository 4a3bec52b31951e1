"""The report of a folder: report.html, report.json and the promoted recipe."""
