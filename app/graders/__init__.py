"""How an answer is graded: one door, `grade.grade()`. No database, no HTTP, no model lives here."""
