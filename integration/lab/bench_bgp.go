package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// bird2 is Debian's BIRD 2, by whose side BGP is measured.
const bird2 = "/usr/sbin/bird"

const (
	bgpAS       = 64512
	bgpDeadline = 2 * time.Minute // for any one step
)

// bgp measures what BGP costs, each figure beside BIRD 2 in the same run, in turns.
func (b *bench) bgp(ctx context.Context) error {
	if _, err := os.Stat(bird2); err != nil {
		return problem("figures of BGP are measured beside BIRD 2, and "+bird2+" is missing", "apt-get install bird2")
	}
	for _, part := range []struct {
		area    string
		measure func(context.Context) error
	}{{"bgp-kernel", b.bgpKernel}, {"bgp-withdraw", b.bgpWithdraw}, {"bgp-mesh", b.bgpMeshes}, {"bgp-reflector", b.bgpReflector}, {"bgp-fault", b.bgpFaults}} {
		if !b.wants(part.area) {
			continue
		}
		if err := part.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.area, err)
		}
	}
	return nil
}

// beside prints a figure of ours beside BIRD's.
func (b *bench) beside(name string, ours, theirs float64, unit string) {
	ratio := 0.0
	if theirs > 0 {
		ratio = ours / theirs
	}
	b.figure(name, ours, unit, ratio, fmt.Sprintf("bird2(%.4g)", theirs))
}

// startBird2 runs BIRD 2 on a machine of the lab until stop is called, with its files in a directory below /run. The returned
// number is that of its process there.
func startBird2(ctx context.Context, l *Lab, where, dir, config string) (pid int, stop func() error, err error) {
	if err := os.WriteFile(filepath.Join(nodeDir(l.dir, where), "run", dir, "bird2.conf"), []byte(config), 0o600); err != nil {
		return 0, nil, err
	}
	conf, ctl := filepath.Join("/run", dir, "bird2.conf"), filepath.Join("/run", dir, "bird2.ctl")
	if _, err := l.Run(ctx, where, bird2, "-p", "-c", conf); err != nil {
		return 0, nil, err
	}
	return startMarked(ctx, l, where, filepath.Join(dir, "bird2.pid"), bird2+" -f -c "+conf+" -s "+ctl)
}

// startMarked runs a program on a machine of the lab until stop is called. It leaves its process number in the file mark, a
// path below the machine's /run.
func startMarked(ctx context.Context, l *Lab, where, mark, command string) (pid int, stop func() error, err error) {
	file := filepath.Join(nodeDir(l.dir, where), "run", mark)
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := l.Exec(ctx, where, Command{Args: []string{"sh", "-c", "echo $$ > /run/" + mark + "; exec " + command}})
		ended <- err
	}()
	pid, err = eventually(ctx, func() (int, error) {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(text)))
	})
	if err != nil {
		cancel()
		return 0, nil, errors.Join(err, <-ended)
	}
	return pid, func() error { // whoever is killed leaves its port
		defer cancel()
		_, err := l.Run(context.WithoutCancel(ctx), where, "kill", "-KILL", strconv.Itoa(pid))
		if err != nil { // it has ended before
			cancel()
		}
		return <-ended
	}, nil
}

// countBird2 asks a BIRD for the number of prefixes in its table.
func countBird2(socket string) (int, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(bgpDeadline)); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte("show route where source ~ [ RTS_STATIC, RTS_BGP ] count\n")); err != nil {
		return 0, err
	}
	for in := bufio.NewScanner(c); in.Scan(); {
		if text, ok := strings.CutPrefix(in.Text(), "0014 Total: "); ok { // "39 of 41 routes for 41 networks in 2 tables"
			n, _, _ := strings.Cut(text, " ")
			return strconv.Atoi(n)
		}
		if text := in.Text(); text != "" && (text[0] == '8' || text[0] == '9') {
			return 0, fmt.Errorf("BIRD says %q", text)
		}
	}
	return 0, errors.New("BIRD said nothing of its routes")
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// cost is what processes have used.
type cost struct {
	cpu float64 // seconds of a processor
	rss float64 // MiB that are resident now
}

func (c cost) since(before cost) cost { return cost{c.cpu - before.cpu, c.rss} }

// costOf adds up what processes of a machine have used.
func costOf(ctx context.Context, l *Lab, where string, pids ...int) (cost, error) {
	var sum cost
	for _, pid := range pids {
		text, err := l.Run(ctx, where, "cat", fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return sum, err
		}
		n, err := statFields(text, 14, 15, 24)
		if err != nil {
			return sum, err
		}
		sum.cpu += float64(n[0]+n[1]) / userHZ
		sum.rss += float64(n[2]) * float64(os.Getpagesize()) / (1 << 20)
	}
	return sum, nil
}

// processIDs are those of a node's processes, as the lab's process namespace counts.
func (l *Lab) processIDs(ctx context.Context, node string, names ...string) ([]int, error) {
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		found := false
		for _, p := range st.Processes {
			if p.Node == node && p.Name == name && p.PID != 0 {
				pids, found = append(pids, p.PID), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%s does not run on %s", name, node)
		}
	}
	return pids, nil
}

// bgpPrefixes are so many IPv4 prefixes of 24 bits.
func bgpPrefixes(n int) []netip.Prefix {
	out := make([]netip.Prefix, n)
	for i := range out {
		out[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(100 + i>>16), byte(i >> 8), byte(i), 0}), 24)
	}
	return out
}
