package lease

import (
	"encoding/binary"
	"hash/crc32"
	"time"
)

// Witness is what a process says beside the journal, where no reboot and no restored disk keeps it: which boot it is, and
// how much of the journal was promised to others. A journal that lacks some of that is not the one that was written.
type Witness struct {
	Boot      string
	Number    uint64        // of the last record that was on disk for certain
	Confirmed time.Duration // when typha confirmed the epoch last, boot time
}

// Encode is a witness as bytes.
func (w Witness) Encode() []byte {
	out := binary.LittleEndian.AppendUint64(nil, w.Number)
	out = binary.LittleEndian.AppendUint64(out, uint64(w.Confirmed))
	out = append(binary.LittleEndian.AppendUint16(out, uint16(len(w.Boot))), w.Boot...)
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// DecodeWitness reads one; anything else is the zero Witness, which vouches for nothing.
func DecodeWitness(data []byte) (w Witness) {
	const fixed = 18
	if len(data) < fixed {
		return w
	}
	end := fixed + int(binary.LittleEndian.Uint16(data[16:]))
	if len(data) < end+4 || binary.LittleEndian.Uint32(data[end:]) != crc32.Checksum(data[:end], castagnoli) {
		return w
	}
	return Witness{
		Boot: string(data[fixed:end]), Number: binary.LittleEndian.Uint64(data),
		Confirmed: time.Duration(binary.LittleEndian.Uint64(data[8:])),
	}
}

// Fate is what became of a journal between two processes.
type Fate string

// The fates. Only a journal that was kept goes on in its epoch; the others enter a new one.
const (
	Kept     Fate = "kept"     // it is whole, and of this boot
	Fresh    Fate = "fresh"    // there is none
	Rebooted Fate = "rebooted" // it is of another boot: the host was restarted, or is another, or its disk is an old image
	Damaged  Fate = "damaged"  // part of what was promised is not there: damaged, or replaced by an older one
)

// Recover says where a process goes on that finds a journal, as bytes, and a witness. A torn end is no damage if nobody
// was promised what it said. living are the addresses of pods that run on the node, as far as that is known from
// elsewhere; claims are those that the next epoch must leave to their pods.
func Recover(data []byte, w Witness, boot string, living []Claim) (s State, number uint64, claims []Claim, fate Fate) {
	if len(data) == 0 && w.Boot != boot {
		return NewState(boot), 1, living, Fresh
	}
	s, number, _, _ = Decode(data)
	switch {
	case number == 0:
		return NewState(boot), max(w.Number, 1), living, Damaged
	case s.Boot != boot:
		_ = s.Apply(Record{Op: OpReboot, Boot: boot}) // fits any state
		return s, max(number, w.Number), living, Rebooted
	case w.Boot == boot && w.Number <= number && s.Epoch != 0:
		return s, number, nil, Kept
	case w.Boot == boot && w.Number <= number: // it may be the successor of one that was lost
		return s, number, living, Kept
	}
	_ = s.Apply(Record{Op: OpFence}) // fits any state
	for _, c := range living {       // what runs is true, what the journal says may be out of date
		if slot, is := s.Slots[c.Addr]; is && slot.Handle != c.Handle {
			delete(s.Slots, c.Addr)
		}
	}
	return s, max(number, w.Number), living, Damaged
}
