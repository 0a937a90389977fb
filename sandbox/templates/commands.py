"""System commands: run programs of the sandbox and use what they print."""

kernel = run_command("uname -sr")
words = run_command(f"printf '%s\\n' {' '.join(payload['words'])} | sort -u")
missing = run_command("no-such-program --help")

result = {
    "kernel": kernel["stdout"].strip(),
    "sorted": words["stdout"].split(),
    "missing_program": {"returncode": missing["returncode"], "reason": missing["stderr"].strip()},
}
