#!/bin/sh
# Runs once, in the new root, while the disk is built: users, test tools, services.
set -eu

useradd --create-home --uid 1000 --shell /bin/bash tester
useradd --create-home --uid 1001 --shell /bin/bash newcomer
useradd --create-home --uid 1002 --shell /bin/bash colleague
chmod 0440 /etc/sudoers.d/tester
passwd --delete root >/dev/null

# Sessions that start at boot and outlive a login: their systemd is what delegates cgroups.
mkdir -p /var/lib/systemd/linger
touch /var/lib/systemd/linger/tester /var/lib/systemd/linger/newcomer /var/lib/systemd/linger/colleague

# The dependencies; the project itself comes as a wheel with each job.
python3 -m venv /srv/venv
/srv/venv/bin/python -m pip install --quiet --no-index --find-links /wheels -r /wheels/requirements.txt
chown -R tester: /srv/venv
rm -rf /wheels

systemctl enable --quiet job.service
# Nothing else has a part in the tests, and under emulation each service costs a second of boot.
systemctl mask --quiet apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-networkd.service systemd-networkd-wait-online.service \
    systemd-resolved.service systemd-timesyncd.service getty@tty1.service podman-auto-update.timer \
    podman-restart.service podman-clean-transient.service
