# Prepares a machine for Kubernetes. Runs on it, before anything else does. $1 is kubectl.
set -eu

# Volumes of pods are mounts that containers hand on to the machine.
mount --make-rshared /

# What kubelet sets for the whole machine goes to files that only this machine of the cluster sees, and has the right values.
mkdir -p /run/muslin-sysctl
while read -r name value; do
	file=/run/muslin-sysctl/$(echo "$name" | tr / .)
	echo "$value" > "$file"
	[ ! -e "/proc/sys/$name" ] || mount --bind "$file" "/proc/sys/$name"
done <<'SETTINGS'
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
vm/overcommit_memory 1
vm/panic_on_oom 0
SETTINGS

mkdir -p /etc/kubernetes/manifests
ln -sf "$1" /usr/local/bin/kubectl
