package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A change of policy is live when the kernel has it. When that was tells the last of its notifications; that it is, and for
// all endpoints, tells what is read from it afterwards.

// rulesWatch hears of each change to a node's rules, by nftables or by what is built on it.
type rulesWatch struct {
	socket *os.File
	ended  chan error

	mu   sync.Mutex // guards the following
	last time.Time
}

func watchRules(ctx context.Context, l *Lab, node string) (*rulesWatch, error) {
	f, err := l.socket(ctx, node, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	fd, err := rawFD(f)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("watch the rules of %s: %w", node, err)
	}
	w := &rulesWatch{socket: f, ended: make(chan error, 1)}
	go func() { w.ended <- w.follow() }()
	return w, nil
}

func (w *rulesWatch) follow() error {
	b := make([]byte, 1<<20)
	for {
		n, err := w.socket.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS): // lost messages are changes too
			return err
		}
		if err == nil && !changesRules(b[:n]) {
			continue
		}
		w.mu.Lock()
		w.last = time.Now()
		w.mu.Unlock()
	}
}

// changesRules tells whether notifications are of more than a new generation, which each transaction makes, an empty one too.
func changesRules(b []byte) bool {
	for len(b) >= unix.SizeofNlMsghdr {
		size, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		if kind>>8 == unix.NFNL_SUBSYS_NFTABLES && kind&0xff != unix.NFT_MSG_NEWGEN {
			return true
		}
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false
}

func (w *rulesWatch) changed() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

func (w *rulesWatch) close() error {
	_ = w.socket.SetReadDeadline(time.Now())
	return errors.Join(<-w.ended, w.socket.Close())
}

// live returns how long after it began the kernel had its last change of rules, once is says that what is due is there and
// nothing has changed for a while.
func (w *rulesWatch) live(ctx context.Context, began time.Time, quiet time.Duration, is func() error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	var looked time.Time // at the state after this change
	err := errors.New("the kernel's rules have not changed")
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		last := w.changed()
		if last.After(began) && time.Since(last) > quiet && !looked.Equal(last) {
			looked = last
			if err = is(); err == nil && w.changed().Equal(last) {
				return last.Sub(began), nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w; seen last: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func nftPolicy(ctx context.Context, l *Lab, node, policy string) (string, error) {
	return ifThere(ctx, l, node, "nft", "list", "chain", "ip", "calico", "filter-cali-pi-gnp/"+policy)
}

func nftMembers(ctx context.Context, l *Lab, node, set string) (int, error) {
	text, err := l.Run(ctx, node, "nft", "list", "set", "ip", "calico", set)
	_, elements, _ := strings.Cut(text, "elements = {")
	return strings.Count(elements, ",") + 1, err
}

var (
	nftChain = regexp.MustCompile(`^\s*chain (\S+) \{`)
	nftCall  = regexp.MustCompile(`(?:jump|goto) filter-cali-pi-(\S+)`)
	nftEntry = regexp.MustCompile(`"cali[^"]*"[^:,]*: (?:jump|goto) ([^\s,]+)`)
)

func nftReach(ctx context.Context, l *Lab, node string) (map[string]int, error) {
	rules, err := l.Run(ctx, node, "nft", "-t", "list", "table", "ip", "calico")
	if err != nil {
		return nil, err
	}
	dispatch, err := l.Run(ctx, node, "nft", "list", "map", "ip", "calico", "cali-to-wl-dispatch")
	return nftReached(rules, dispatch), err
}

// nftReached reads the chains of lists, and the map that leads each interface to one.
func nftReached(rules, dispatch string) map[string]int {
	lists, chain := map[string][]string{}, ""
	for line := range strings.Lines(rules) {
		if m := nftChain.FindStringSubmatch(line); m != nil {
			chain = m[1]
		}
		if m := nftCall.FindStringSubmatch(line); m != nil {
			lists[chain] = append(lists[chain], m[1])
		}
	}
	reach := map[string]int{}
	for _, m := range nftEntry.FindAllStringSubmatch(dispatch, -1) {
		for _, policy := range lists[m[1]] {
			reach[policy]++
		}
	}
	return reach
}

func iptablesPolicy(ctx context.Context, l *Lab, node, policy string) (string, error) {
	return ifThere(ctx, l, node, "iptables-nft", "-S", "cali-pi-gnp/"+policy)
}

func ipsetMembers(ctx context.Context, l *Lab, node, set string) (int, error) {
	text, err := l.Run(ctx, node, "ipset", "list", "-t", set)
	if err != nil {
		return 0, err
	}
	_, n, _ := strings.Cut(text, "Number of entries: ")
	return strconv.Atoi(strings.TrimSpace(n))
}

var (
	iptablesRule = regexp.MustCompile(`^-A (\S+) .*-[jg] (\S+)\s*$`)
	toInterface  = regexp.MustCompile(` -o cali[0-9a-f]{11} `)
)

func iptablesReach(ctx context.Context, l *Lab, node string) (map[string]int, error) {
	all, err := l.Run(ctx, node, "iptables-nft", "-S")
	return iptablesReached(all), err
}

// iptablesReached reads the chains of lists, and the tree that leads each interface to one.
func iptablesReached(all string) map[string]int {
	lists := map[string][]string{}
	var dispatch []string // the list of each interface
	for line := range strings.Lines(all) {
		m := iptablesRule.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if policy, ok := strings.CutPrefix(m[2], "cali-pi-"); ok {
			lists[m[1]] = append(lists[m[1]], policy)
		} else if strings.HasPrefix(m[1], "cali-to-wl-dispatch") && toInterface.MatchString(line) {
			dispatch = append(dispatch, m[2])
		}
	}
	reach := map[string]int{}
	for _, list := range dispatch {
		for _, policy := range lists[list] {
			reach[policy]++
		}
	}
	return reach
}

// ifThere is what a program tells of a chain, or nothing where it says that there is none. (iptables says so of a chain that it
// does not find beside nftables' own.)
func ifThere(ctx context.Context, l *Lab, node string, args ...string) (string, error) {
	var out, said bytes.Buffer
	code, err := l.Exec(ctx, node, Command{Args: args, Stdout: &out, Stderr: &said})
	switch {
	case err != nil:
		return "", err
	case code == 0:
		return out.String(), nil
	}
	for _, none := range []string{"No such file", "No chain", "incompatible"} {
		if strings.Contains(said.String(), none) {
			return "", nil
		}
	}
	return "", fmt.Errorf("%s on %s: exit status %d: %s", strings.Join(args, " "), node, code, lastOf(said.String()))
}
