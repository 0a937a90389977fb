# /// script
# dependencies = ["psutil"]
#
# [tool.will-it-run]
# library = "psutil, addresses"
# does = "lists the addresses of the network's interfaces"
# why_not = "[Errno 38] Function not implemented"
# instead = "a sandbox has loopback alone, and no program may ask the kernel for a list of interfaces"
# ///
import psutil

result = list(psutil.net_if_addrs())
