package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/muslin-net/muslin/cni/conf"
	"github.com/muslin-net/muslin/felix/client/cni"
)

// delegateAdd has the network's IPAM plugin, another one than ours, give addresses and routes. If what it gave cannot be
// used, it gets it back.
func (c call) delegateAdd(ctx context.Context, cfg *cni.Config) error {
	stdin, err := c.delegated(ctx)
	if err != nil {
		return err
	}
	given, err := start(ctx, c.network.IPAM.Type, "ADD", stdin)
	if err != nil {
		return fmt.Errorf("IPAM plugin %s: %w", c.network.IPAM.Type, err)
	}
	r, err := resultOf(given, c.network.CNIVersion)
	if err == nil {
		cfg.Addresses, err = addressesOf(r)
	}
	if err == nil {
		cfg.Routes, err = routesOf(r, c.network.IncludeDefaultRoutes)
	}
	if err != nil {
		return c.giveBack(ctx, fmt.Errorf("IPAM plugin %s: %w", c.network.IPAM.Type, err))
	}
	return nil
}

// delegated is the configuration for the IPAM plugin: with the node's own ranges, where it asks for them.
func (c call) delegated(ctx context.Context) ([]byte, error) {
	if !conf.UsesPodCIDR(c.StdinData) {
		return c.StdinData, nil
	}
	cidrs, err := c.felix.PodCIDRs(ctx)
	if err != nil {
		return nil, err
	}
	stdin, err := conf.WithPodCIDRs(c.StdinData, cidrs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", cni.ErrInvalid, err)
	}
	return stdin, nil
}

// giveBack returns what another IPAM plugin gave, after an ADD that failed, perhaps for want of time.
func (c call) giveBack(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backTime)
	defer cancel()
	return errors.Join(why, c.delegate(ctx, "DEL"))
}

// delegate passes a verb on to the network's IPAM plugin, where that is another one than ours.
func (c call) delegate(ctx context.Context, verb string) error {
	if c.network.Own() {
		return nil
	}
	stdin, err := c.delegated(ctx)
	if err == nil {
		_, err = start(ctx, c.network.IPAM.Type, verb, stdin)
	}
	if err != nil {
		return fmt.Errorf("IPAM plugin %s: %w", c.network.IPAM.Type, err)
	}
	return nil
}

// A plugin that is being written, by an installer that does not replace it whole, is tried again.
const (
	busyTries = 5
	busyWait  = time.Second
)

// start runs another plugin, as package invoke of the CNI project does. That brings telemetry and with it net/http along, a sixth of
// what each start of this plugin would cost, though hardly any has a plugin to start.
func start(ctx context.Context, plugin, verb string, stdin []byte) ([]byte, error) {
	path, err := find(plugin, os.Getenv("CNI_PATH"))
	if err != nil {
		return nil, err
	}
	for tries := 1; ; tries++ {
		var out, said bytes.Buffer
		cmd := exec.CommandContext(ctx, path)
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &said
		err := cmd.Run()
		switch {
		case err == nil:
			_, err = said.WriteTo(os.Stderr)
			return out.Bytes(), err
		case errors.Is(err, syscall.ETXTBSY) && tries <= busyTries:
			select {
			case <-ctx.Done():
			case <-time.After(busyWait):
				continue
			}
		}
		var told types.Error
		if json.Unmarshal(out.Bytes(), &told) == nil && told.Code != 0 {
			return nil, &told
		}
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()+out.String()))
	}
}

// find looks for a plugin where the runtime has them.
func find(plugin, path string) (string, error) {
	if plugin == "" || strings.ContainsRune(plugin, os.PathSeparator) {
		return "", fmt.Errorf("%q is no name of a plugin", plugin)
	}
	for _, dir := range filepath.SplitList(path) {
		at := filepath.Join(dir, plugin)
		if info, err := os.Stat(at); err == nil && info.Mode().IsRegular() {
			return at, nil
		}
	}
	return "", fmt.Errorf("there is no such plugin in CNI_PATH %q", path)
}

// resultOf reads a result; one that does not name its version has that of the configuration.
func resultOf(given []byte, version string) (*current.Result, error) {
	fields := map[string]any{}
	if err := json.Unmarshal(given, &fields); err != nil {
		return nil, fmt.Errorf("its result cannot be read: %w", err)
	}
	if said, _ := fields["cniVersion"].(string); said != "" {
		version = said
	} else if fields != nil {
		fields["cniVersion"] = version
		given, _ = json.Marshal(fields) // what was read can be written
	}
	r, err := create.Create(version, given)
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(r)
}
