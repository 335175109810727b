package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// bridgeConfig is a network of each worker for itself: the CNI project's bridge, with addresses by host-local.
const bridgeConfig = `{"cniVersion": "1.0.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

// stockPlugins are the CNI project's, of the version in go.mod, that this takes.
var stockPlugins = []string{"main/bridge", "main/loopback", "ipam/host-local", "meta/portmap"}

// UseBridge gives pods a network by the CNI project's bridge and host-local, without routes between workers: what start times
// of pods are compared with.
func (c *Cluster) UseBridge(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "muslin-plugins")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, p := range stockPlugins {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, filepath.Base(p)), "github.com/containernetworking/plugins/plugins/"+p)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building the CNI plugin %s: %w\n%s", p, err, out)
		}
	}
	for i, w := range c.Workers() {
		for _, p := range stockPlugins {
			if err := c.copyTo(ctx, w, filepath.Join(dir, filepath.Base(p)), "/opt/cni/bin/"+filepath.Base(p)); err != nil {
				return err
			}
		}
		conf := fmt.Sprintf(bridgeConfig, fmt.Sprintf("192.168.%d.0/24", i+1))
		script := "mkdir -p /etc/cni/net.d && sysctl -qw net.ipv4.ip_forward=1 && cat > /etc/cni/net.d/10-bridge.conflist"
		if err := c.shell(ctx, w, script, strings.NewReader(conf)); err != nil {
			return err
		}
	}
	return nil
}

// copyTo copies a program onto a machine.
func (c *Cluster) copyTo(ctx context.Context, machine, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.shell(ctx, machine, fmt.Sprintf("mkdir -p %s && cat > %s && chmod 755 %[2]s", filepath.Dir(to), to), f)
}
