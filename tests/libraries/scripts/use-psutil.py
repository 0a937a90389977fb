# /// script
# dependencies = ["psutil"]
#
# [tool.will-it-run]
# does = "looks at its own process, the memory and the disk"
# expects = true
# quick = true
# ///
import psutil

own = psutil.Process()
print(own.name(), own.memory_info().rss, own.num_threads(), own.open_files())
print(psutil.cpu_count(), psutil.cpu_percent(0.1), psutil.virtual_memory().total, psutil.disk_usage("/tmp").percent)
print(psutil.boot_time(), psutil.net_io_counters())
result = own.memory_info().rss > 0 and psutil.pid_exists(own.pid)
