"""The subcommands of `direct-hifimamba`, one file each."""
