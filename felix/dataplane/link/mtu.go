package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
)

// Grow raises the MTU of links that are to have a larger one. It is apart from Apply, and comes after tunnels and routes were
// made larger: a pod that sends more than those take is told so, and believes it for ten minutes.
func (d *Driver) Grow(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var failed dataplane.Failures
	for name := range d.growing {
		if err := ctx.Err(); err != nil {
			return errors.Join(failed.Join(), err)
		}
		delete(d.growing, name)
		if err := d.grow(name); err != nil {
			delete(d.done, name)
			failed.Add(dataplane.KindLink, name, err)
			d.failures.Add(dataplane.KindLink, name, err)
		}
	}
	return failed.Join()
}

func (d *Driver) grow(name string) error {
	want, wanted := d.links[name]
	if !wanted {
		return nil
	}
	l, err := d.handle.LinkByName(name)
	if err != nil {
		return ignoreMissing(err)
	}
	return d.setMTU(l, want)
}

// setMTU changes the MTU of a pair while packets flow. The kernel drops, without telling the sender, a packet that is
// larger than the MTU of the end it comes out of; so the pod's end is never the larger one: it shrinks first and grows
// last. An end in a namespace that can no longer be reached keeps the whole pair as it is: its pod is about to go.
func (d *Driver) setMTU(outside netlink.Link, want desired.WorkloadLink) error {
	name, now := outside.Attrs().Name, outside.Attrs().MTU
	host := func() error {
		if now == want.MTU {
			return nil
		}
		if err := d.write(d.handle.LinkSetMTU(outside, want.MTU)); err != nil {
			return fmt.Errorf("set MTU %d: %w", want.MTU, err)
		}
		return nil
	}
	if want.Netns == "" {
		return host()
	}
	ns, in, err := openPod(want.Netns)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	defer in.Close()
	pod := func() error {
		inside, err := in.LinkByIndex(outside.Attrs().ParentIndex)
		if err == nil && !peers(inside, outside) {
			err = fmt.Errorf("interface %s there is not the other end of %s", inside.Attrs().Name, name)
		}
		if err == nil && inside.Attrs().MTU != want.MTU {
			err = d.write(in.LinkSetMTU(inside, want.MTU))
		}
		if err != nil {
			return fmt.Errorf("set MTU %d in the pod's namespace %s: %w", want.MTU, want.Netns, err)
		}
		return nil
	}
	d.halves[name] = struct{}{} // until both ends are done
	steps := []func() error{host, pod}
	if want.MTU < now {
		steps = []func() error{pod, host}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	delete(d.halves, name)
	return nil
}
