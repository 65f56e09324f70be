"""How answers are shown: tables, lines for programs, pictures in a terminal, HTML, a notebook, folders."""
