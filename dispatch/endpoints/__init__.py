"""The HTTP endpoints, one module an area: each parses, calls one function, and answers.

One job: the table of paths of each area. Nothing is decided here; whoever may not is told so before
anything is read from the database. Imports whatever it calls; `http` puts the areas together.
"""
