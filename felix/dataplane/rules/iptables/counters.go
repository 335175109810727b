package iptables

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counters ask xtables, which sends no notifications, for the headers of tables: where the kernel's chains begin and end,
// how many rules there are and of what size. That is one system call a table and family, and tells all but a rule that was
// replaced by one of equal size. A full comparison finds that one.
type counters struct {
	sockets map[bool]int // by whether they are for IPv6
	known   map[tableOf]info
}

type tableOf struct {
	v6   bool
	name string
}

// info is struct ipt_getinfo, which is struct ip6t_getinfo too (linux/netfilter_ipv4/ip_tables.h).
type info struct {
	name       [32]byte
	validHooks uint32
	begins     [5]uint32
	ends       [5]uint32
	rules      uint32
	size       uint32
}

func openCounters() (*counters, error) {
	c := &counters{sockets: map[bool]int{}, known: map[tableOf]info{}}
	for v6, family := range map[bool]int{false: unix.AF_INET, true: unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			_ = c.close()
			return nil, fmt.Errorf("open a raw socket to ask xtables: %w", err)
		}
		c.sockets[v6] = fd
	}
	return c, nil
}

func (c *counters) close() error {
	var errs []error
	for _, fd := range c.sockets {
		errs = append(errs, unix.Close(fd))
	}
	clear(c.sockets)
	return errors.Join(errs...)
}

// ask reads the header of a table.
func (c *counters) ask(t tableOf) (info, error) {
	level, option := unix.IPPROTO_IP, uintptr(64) // IPT_SO_GET_INFO
	if t.v6 {
		level = unix.IPPROTO_IPV6 // IP6T_SO_GET_INFO is the same number
	}
	fd, open := c.sockets[t.v6]
	if !open {
		return info{}, unix.EBADF
	}
	var out info
	copy(out.name[:], t.name)
	size := uint32(unsafe.Sizeof(out))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), option,
		uintptr(unsafe.Pointer(&out)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return out, fmt.Errorf("ask xtables for table %s: %w", t.name, errno)
	}
	return out, nil
}

// tables are those in which we have something; asking for another would bring it into being.
func (c *counters) forget(f *family) error {
	for _, t := range f.tables {
		delete(c.known, tableOf{f.v6, t.name})
	}
	return nil
}

func (c *counters) wrote(f *family, table string, write func() error) error {
	err := write()
	delete(c.known, tableOf{f.v6, table})
	if now, failed := c.ask(tableOf{f.v6, table}); failed == nil && err == nil {
		c.known[tableOf{f.v6, table}] = now
	}
	return err
}

func (c *counters) poll(families []*family) error {
	for _, f := range families {
		for _, t := range f.tables {
			if t.empty() {
				continue
			}
			of := tableOf{f.v6, t.name}
			now, err := c.ask(of)
			if err != nil {
				return err
			}
			if was, asked := c.known[of]; asked && was != now {
				f.stale = true
			}
			c.known[of] = now
		}
	}
	return nil
}

func (c *counters) follow(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return nil
}
