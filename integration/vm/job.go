package vm

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

//go:embed guest/init
var guestInit []byte

//go:embed guest/job.sh
var guestJob []byte

// initrd makes the file system that the guest boots from, in memory: a file on disk could be left behind.
func initrd(ctx context.Context, k kernel, c Config, argv []string) (*os.File, error) {
	order, err := k.bootOrder()
	if err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(k.busybox())
	if err != nil {
		return nil, err
	}
	var a archive
	for _, dir := range []string{"bin", "dev", "proc", "modules", "machine", "changes", "root"} {
		a.dir(dir)
	}
	a.file("init", guestInit)
	a.file("job.sh", guestJob)
	a.file("job", job(k, c, argv))
	a.file("bin/busybox", busybox)
	var names bytes.Buffer
	for _, file := range order {
		content, err := readModule(ctx, filepath.Join(k.modules(), file))
		if err != nil {
			return nil, err
		}
		name := moduleName(file) + ".ko"
		fmt.Fprintln(&names, name)
		a.file("modules/"+name, content)
	}
	a.file("modules/order", names.Bytes())
	a.end()
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for the guest's first files: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initrd")
	if _, err := f.Write(a.Bytes()); err != nil {
		f.Close()
		return nil, fmt.Errorf("memory for the guest's first files: %w", err)
	}
	return f, nil
}

// job is what differs between one run and the next, as shell variables and the function job.
func job(k kernel, c Config, argv []string) []byte {
	var b bytes.Buffer
	set := func(name, value string) { fmt.Fprintf(&b, "%s=%s\n", name, quote(value)) }
	host, _ := os.Hostname() // empty is fine: the kernel's own name stays
	set("hostname", host)
	set("kernel", k.dir)
	set("dir", c.Dir)
	set("modules", strings.Join(c.Modules, " "))
	set("writable", strings.Join(c.Writable, "\n"))
	set("stdin", fmt.Sprint(c.Stdin != nil))
	b.WriteString("job() {\n\texec $box setsid /usr/bin/env -i")
	for _, words := range [][]string{c.Env, argv} {
		for _, w := range words {
			b.WriteString(" \\\n\t\t" + quote(w))
		}
	}
	b.WriteString("\n}\n")
	return b.Bytes()
}

// quote makes any text one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
