// Package watch tells when the host's interfaces or their addresses change.
package watch

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
)

// buffer is how many messages of the kernel may wait; a burst is told as one change.
const buffer = 64

// Addresses calls changed whenever an address or an interface comes, goes or changes, until ctx ends. It must not block. When
// the kernel's messages are lost, it says why: the caller starts again, and looks for itself meanwhile.
func Addresses(ctx context.Context, changed func()) error {
	group, ctx := errgroup.WithContext(ctx)
	addrs := stream[netlink.AddrUpdate]{messages: make(chan netlink.AddrUpdate, buffer)}
	links := stream[netlink.LinkUpdate]{messages: make(chan netlink.LinkUpdate, buffer)}
	err := netlink.AddrSubscribeWithOptions(addrs.messages, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: addrs.failed})
	if err != nil {
		return fmt.Errorf("watch the host's addresses: %w", err)
	}
	err = netlink.LinkSubscribeWithOptions(links.messages, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: links.failed})
	if err != nil {
		return fmt.Errorf("watch the host's interfaces: %w", err)
	}
	changed() // what changed before the subscription
	group.Go(func() error { return addrs.follow(ctx, changed) })
	group.Go(func() error { return links.follow(ctx, changed) })
	return group.Wait()
}

// stream is what the kernel tells of one kind.
type stream[T any] struct {
	messages chan T
	lost     error // why it ended; set before messages is closed
}

func (s *stream[T]) failed(err error) { s.lost = err }

// follow calls changed for each message.
func (s *stream[T]) follow(ctx context.Context, changed func()) error {
	for range s.messages {
		changed()
	}
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errors.New("the kernel tells no more of the host's addresses"), s.lost)
}
