"""Process 1 inside the sandbox: receives one job, runs it in a child, streams what it does.

It imports the standard library alone (Python 3.8+) and, of ours, nothing but the modules of this package. No module
imports another in a circle: `sandbox.container.harness_files` joins them into one file, in the order of their imports,
because one file starts fastest. So a name at the top of a module is its own in the whole package. That file is
bind-mounted into images that know nothing of us and started with::

    python3 -s -B -c "import sys; sys.path[0] = '/run/sandbox/lib'; import harness; harness.main(...)"

Only what is needed to say "ready" is imported at the top (`_socket` rather than `socket`, no `typing`):
start-up time is part of every cold run. The rest is imported while the runner checks the sandbox. Before the job,
but after that check, the runner may ask to prepare for it and name modules to preload: the program's process is then
forked ahead of the job, has those modules, and waits.

Two roles, one fork apart. The *supervisor* (process 1, non-dumpable) owns the job socket, enforces the caps
and reports. The *program* (its child) runs the user's code and is hostile from the supervisor's point of
view from then on: all it has is its own output pipes and one end of a packet socket, the *channel*. Its job comes
over another socket, the *inbox*, which is closed before the user's first line. A packet of the channel is one type byte
and at most 64 KiB:

    L log JSON    F 8-byte size + file name    f file data    V result JSON in chunks    A additional data
    M meta JSON (commits the result)    X error JSON    Z the result is certain to exceed its cap

Read it along the path of a job: `main` connects and prepares (`preload`, `cells`), `serving` takes the job over a
`connection`, `child` forks the process that `program` runs it in, `supervisor` watches that. What they stand on:
`compiling`, `values`, `json_text`, `failures`, `program_functions`, `leavings`, `channel`, `sources`, `process`,
`streams`, `relay`; below those `labelled`, `text`, `limits`, `directory` and `unseen`. `child_start` goes into a
file of its own: the Python processes that a program starts begin with it, see `handing_on`. The host uses `compiling`,
`text`, `values` and `json_text` as a library.
"""
