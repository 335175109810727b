package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// Variant is which of the two programs of the name iptables it is: they write to different tables of the kernel's.
type Variant string

// The variants.
const (
	Legacy Variant = "legacy" // xtables
	NFT    Variant = "nft"    // nftables, in tables that it shares with nobody
)

// program is the programs of one variant for one family.
type program struct {
	variant       Variant
	save, restore string
	lock          LockWait
	randomFully   bool
	interval      bool                     // it knows how often to look at the lock; later ones wait without looking
	in            func(func() error) error // runs what runs programs
	feed          *feed                    // nil: none runs
	unfed         bool                     // there shall be none
}

// LockWait is how long to wait for the lock that programs of xtables hold, and how often to look. nft has none.
type LockWait struct {
	Timeout time.Duration // whole seconds; 0: 10 s
	Probe   time.Duration // 0: 50 ms
}

func (l LockWait) args(interval bool) []string {
	if l.Timeout <= 0 {
		l.Timeout = 10 * time.Second
	}
	if l.Probe <= 0 {
		l.Probe = 50 * time.Millisecond
	}
	seconds := max(1, int(l.Timeout.Round(time.Second)/time.Second))
	out := []string{"-w", strconv.Itoa(seconds)}
	if interval {
		out = append(out, "-W", strconv.FormatInt(l.Probe.Microseconds(), 10))
	}
	return out
}

// binary is the name of a program: "ip6tables-nft-restore".
func binary(v6 bool, v Variant, verb string) string {
	name := "iptables"
	if v6 {
		name = "ip6tables"
	}
	if v != "" {
		name += "-" + string(v)
	}
	return name + verb
}

// findProgram finds the programs of a variant: under names that say which they are, or else those that say so when they are
// asked for their version.
func findProgram(v6 bool, v Variant, in func(func() error) error) (program, error) {
	p := program{variant: v, in: in}
	for _, named := range []Variant{v, ""} {
		main, err := exec.LookPath(binary(v6, named, ""))
		if err != nil {
			continue
		}
		p.save, p.restore = binary(v6, named, "-save"), binary(v6, named, "-restore")
		if named == "" {
			said, err := exec.Command(main, "--version").Output()
			if err != nil || strings.Contains(string(said), "nf_tables") != (v == NFT) {
				continue
			}
		}
		family := iptables.ProtocolIPv4
		if v6 {
			family = iptables.ProtocolIPv6
		}
		can, err := iptables.New(iptables.IPFamily(family), iptables.Path(main))
		if err != nil {
			return p, fmt.Errorf("%s: %w", main, err)
		}
		p.randomFully = can.HasRandomFully()
		v1, v2, v3 := can.GetIptablesVersion()
		p.interval = v1 == 1 && (v2 < 8 || v2 == 8 && v3 < 8)
		return p, nil
	}
	return p, fmt.Errorf("%s: %w", binary(v6, v, ""), ErrNoProgram)
}

// ErrNoProgram says that the programs of the variant are not on this node.
var ErrNoProgram = errors.New("no such program on this node: install iptables 1.8, or set nftablesMode to Enabled")

// read asks for all tables.
func (p *program) read(ctx context.Context) (map[string]saved, error) {
	out, err := p.run(ctx, p.save, "")
	if err != nil {
		return nil, err
	}
	return parseSave(bytes.NewReader(out))
}

// write hands one transaction to iptables-restore: all of it takes effect, or nothing.
func (p *program) write(ctx context.Context, text string) error {
	args := append([]string{"--noflush"}, p.lock.args(p.interval)...)
	if p.feed == nil && !p.unfed {
		var err error
		p.feed, err = newFeed(p.restore, p.in, args...)
		p.unfed = err != nil
	}
	if f := p.feed; f != nil {
		err := f.commit(ctx, text)
		if err == nil {
			if f.written > enough {
				p.rest()
			}
			return nil
		}
		p.feed = nil
		if ctx.Err() != nil {
			return err
		}
		if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() == resourceProblem {
			return &refusal{program: p.restore, said: f.said, err: err}
		}
	}
	_, err := p.run(ctx, p.restore, text, args...) // what it is that the kernel refuses, it says with the line
	return err
}

// rest ends what waits for more to write.
func (p *program) rest() {
	if p.feed != nil {
		p.feed.end()
		p.feed = nil
	}
}

func (p *program) run(ctx context.Context, name, stdin string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := p.in(cmd.Run); err != nil {
		return nil, &refusal{program: name, said: strings.TrimSpace(errs.String()), err: err}
	}
	return out.Bytes(), nil
}

// refusal is the failure of a program.
type refusal struct {
	program, said string
	err           error
}

// Error is what the program said.
func (r *refusal) Error() string {
	return fmt.Sprintf("%s: %s (%v)", r.program, strings.Join(strings.Fields(r.said), " "), r.err)
}

// Unwrap is the exit status.
func (r *refusal) Unwrap() error { return r.err }

// resourceProblem is the exit status that says that the lock was not got, or the kernel was busy.
const resourceProblem = 4

// whole tells whether a failure is that of the run, not of what was to be written.
func whole(err error) bool {
	var exit *exec.ExitError
	return !errors.As(err, &exit) || exit.ExitCode() == resourceProblem && !strings.Contains(err.Error(), "line")
}

var atLine = regexp.MustCompile(`line:? (\d+)`)

// blamed are the units whose lines a program complained of; none if it named no line, or that of the commit.
func blamed(err error, owner []*unit) map[*unit]bool {
	out := map[*unit]bool{}
	for _, found := range atLine.FindAllStringSubmatch(err.Error(), -1) {
		if n, _ := strconv.Atoi(found[1]); n > 0 && n <= len(owner) && owner[n-1] != nil {
			out[owner[n-1]] = true
		}
	}
	return out
}
