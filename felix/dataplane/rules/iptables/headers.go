package iptables

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// headers ask xtables, which sends no notifications, for those of tables: where the kernel's chains begin and end,
// how many rules there are and of what size. That is one system call a table and family, and tells all but a rule that was
// replaced by one of equal size. A full comparison finds that one.
type headers struct {
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

func openHeaders() (*headers, error) {
	h := &headers{sockets: map[bool]int{}, known: map[tableOf]info{}}
	for v6, family := range map[bool]int{false: unix.AF_INET, true: unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			_ = h.close()
			return nil, fmt.Errorf("open a raw socket to ask xtables: %w", err)
		}
		h.sockets[v6] = fd
	}
	return h, nil
}

func (h *headers) close() error {
	var errs []error
	for _, fd := range h.sockets {
		errs = append(errs, unix.Close(fd))
	}
	clear(h.sockets)
	return errors.Join(errs...)
}

// ask reads the header of a table.
func (h *headers) ask(t tableOf) (info, error) {
	level, option := unix.IPPROTO_IP, uintptr(64) // IPT_SO_GET_INFO
	if t.v6 {
		level = unix.IPPROTO_IPV6 // IP6T_SO_GET_INFO is the same number
	}
	fd, open := h.sockets[t.v6]
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

func (h *headers) forget(f *family) error {
	for _, t := range f.tables {
		delete(h.known, tableOf{f.v6, t.name})
	}
	return nil
}

func (h *headers) wrote(f *family, table string, write func() error) error {
	err := write()
	delete(h.known, tableOf{f.v6, table})
	if now, failed := h.ask(tableOf{f.v6, table}); failed == nil && err == nil {
		h.known[tableOf{f.v6, table}] = now
	}
	return err
}

func (h *headers) poll(families []*family) error {
	for _, f := range families {
		for _, t := range f.tables {
			if t.empty() { // asking for it would bring it into being
				continue
			}
			of := tableOf{f.v6, t.name}
			now, err := h.ask(of)
			if err != nil {
				return err
			}
			if was, asked := h.known[of]; asked && was != now {
				f.stale = true
			}
			h.known[of] = now
		}
	}
	return nil
}

func (h *headers) follow(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return nil
}
