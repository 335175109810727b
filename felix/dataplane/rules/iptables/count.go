package iptables

import (
	"bufio"
	"bytes"
	"context"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
)

// counting is a rule that decides something, as the kernel names it.
type counting struct{ table, chain, hash string }

// Counters reads what the rules of the model counted, with iptables-save.
func (d *Driver) Counters(ctx context.Context) ([]dataplane.Counter, error) {
	var out []dataplane.Counter
	at := map[[2]string]int{}
	for _, f := range d.families {
		rules := d.counting(f)
		text, err := f.program.run(ctx, f.program.save, "", "-c")
		if err != nil {
			return nil, err
		}
		eachCount(text, func(r counting, packets, bytes uint64) {
			key, counts := rules[r]
			if !counts {
				return
			}
			i, met := at[key]
			if !met {
				i = len(out)
				at[key] = i
				out = append(out, dataplane.Counter{Chain: key[0], Comment: key[1]})
			}
			out[i].Packets += packets
			out[i].Bytes += bytes
		})
	}
	return out, nil
}

// counting finds the rules of the model that decide something: their chains as the model names them, and their comments.
func (d *Driver) counting(f *family) map[counting][2]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[counting][2]string{}
	for name := range d.model.Chains {
		kernel := kernelChain(name)
		for _, t := range f.tables {
			c, wanted := t.chains.Desired(kernel)
			if !wanted {
				continue
			}
			for i, r := range c.rules {
				if decides(r.target) || desired.OfStaged(name) {
					out[counting{t.name, kernel, c.hashes[i]}] = [2]string{d.model.ToldAs(name), r.comment}
				}
			}
		}
	}
	return out
}

func decides(target string) bool {
	return strings.HasPrefix(target, "-g "+chainAllow) || strings.HasPrefix(target, "-g "+chainPass) ||
		strings.HasPrefix(target, drop) || strings.HasPrefix(target, "-j REJECT")
}

// eachCount reads the output of iptables-save -c: "[packets:bytes] -A chain …".
func eachCount(text []byte, each func(r counting, packets, bytes uint64)) {
	table := ""
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "*") {
			table = line[1:]
			continue
		}
		counts, rule, ok := strings.Cut(line, "] -A ")
		found := hashOf.FindStringSubmatch(rule)
		if !ok || found == nil {
			continue
		}
		packets, bytes, _ := strings.Cut(strings.TrimPrefix(counts, "["), ":")
		p, _ := strconv.ParseUint(packets, 10, 64)
		b, _ := strconv.ParseUint(bytes, 10, 64)
		chain, _, _ := strings.Cut(rule, " ")
		each(counting{table, chain, found[1]}, p, b)
	}
}
