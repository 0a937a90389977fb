"""What runs inside sandboxes, where this project may not be installed: each program here goes there as one file.

Everything here imports the standard library alone and runs on Python 3.8; of our own code, a package here imports its
own modules and nothing else. The rest of the project may import from here: the two sides then agree on what a name is,
and on how a program is compiled.

Read `harness` first: it is process 1 of every sandbox and runs the others as ordinary programs. `install_program`
resolves and installs libraries, `code_check_program` checks code without running it. `image_tree` is another matter: it
makes the tree of an image ready, before there is a sandbox.
"""
