"""Where jobs run: this process, or another one."""
