//go:build lab

package startup_test

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Autodetection against the kernel's real interfaces and routes.
func TestAutodetection(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace and needs root: run it as root, or under unshare -Urnm")
	}
	runtime.LockOSThread() // never given back: the thread's namespace is the test's
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	out, err := exec.Command("sh", "-ec", `ip link set lo up
		ip link add eth0 type veth peer name peer0; ip link set eth0 up; ip link set peer0 up
		ip addr add 10.30.0.206/24 dev eth0; ip -6 addr add fd00:30::206/64 dev eth0 nodad
		ip link add eth1 type veth peer name peer1; ip link set eth1 up; ip link set peer1 up
		ip addr add 172.20.0.5/16 dev eth1
		ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up
		ip link add cali0 type veth peer name cali1; ip addr add 10.99.0.1/32 dev cali0
		ip route add 198.51.100.0/24 via 10.30.0.1 dev eth0`).CombinedOutput()
	require.NoError(t, err, string(out))
	for env, want := range map[string]string{
		"": "172.20.0.5/16", // the highest index that is no virtual name
		"IP=autodetect IP_AUTODETECTION_METHOD=first-found":        "172.20.0.5/16",
		"IP_AUTODETECTION_METHOD=interface=eth0":                   "10.30.0.206/24",
		"IP_AUTODETECTION_METHOD=interface=nothing,eth0":           "10.30.0.206/24",
		"IP_AUTODETECTION_METHOD=interface=docker.*":               "172.17.0.1/16",
		"IP_AUTODETECTION_METHOD=skip-interface=eth1":              "10.30.0.206/24",
		"IP_AUTODETECTION_METHOD=cidr=10.30.0.0/16,192.168.0.0/16": "10.30.0.206/24",
		"IP_AUTODETECTION_METHOD=cidr=172.17.0.0/16":               "172.17.0.1/16",
		"IP_AUTODETECTION_METHOD=can-reach=198.51.100.9":           "10.30.0.206/24",
		"IP_AUTODETECTION_METHOD=can-reach=172.20.3.3":             "172.20.0.5/16",
		"IP=10.30.0.206":         "10.30.0.206/24",
		"IP=none IP6=autodetect": " fd00:30::206/64",
		"IP=none IP6=autodetect IP6_AUTODETECTION_METHOD=can-reach=fd00:30::1": " fd00:30::206/64",
	} {
		r, err := start(t, &typha{}, env)
		require.NoError(t, err, env)
		require.Equal(t, want, strings.TrimRight(prefixText(r.IPv4)+" "+prefixText(r.IPv6), " "), env)
	}
	for env, want := range map[string]string{
		"IP_AUTODETECTION_METHOD=can-reach=203.0.113.1": "there is no way to 203.0.113.1",
		"IP_AUTODETECTION_METHOD=skip-interface=eth.*":  "found no IPv4 address on",
	} {
		_, err := start(t, &typha{}, env)
		require.ErrorContains(t, err, want, env)
	}
	r, err := start(t, &typha{}, "IP=autodetect IP6=autodetect CALICO_IPV4POOL_IPIP=Never")
	require.NoError(t, err)
	require.Len(t, r.Interfaces, 2, "virtual ones are not told: %v", r.Interfaces)
	require.Equal(t, "eth0", r.Interfaces[0].Name)
	require.Len(t, r.Interfaces[0].Addresses, 2)
	r, err = start(t, &typha{}, "")
	require.NoError(t, err)
	require.Empty(t, r.Interfaces, "only for the families that are asked for in so many words")
}
