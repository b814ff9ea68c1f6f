# The firmware of a guest without an operating system: it writes numbered sectors to its IDE disks, for ever.
#
# Number n goes to sector (n % 256) * SPREAD of every disk, filled with n as 32-bit words. After each number with
# n % BATCH == BATCH - 1 the disks flush their caches, and then n is said on the serial port: "ACK 0000001f".
# n begins at FIRST. It lives in memory, which survives a reset of the machine, so no number is written twice.
# A failed command says "ERR" and the number; then the CPU halts.
#
# A command has ended when the disk raises its interrupt, as for a real driver. Its busy bit is not enough: QEMU clears
# that of a failed request too, before it stops the machine to try the request again later (werror=stop).
#
# Assembled by tiny_guest.py, which defines DISKS (1 or 2), SPREAD (128 KiB are 0x100 sectors), BATCH, PAUSE_MS and FIRST.

	.code16
	.section .text
	.set COUNTER, 0x500		# the number, and beside it a word that tells a reset from a power-on
	.set MAGIC, 0x70766f74
	.set SERIAL, 0x3f8
	.set TASK_FILE, 0x1f0
	.set PIC, 0xa0			# the second interrupt controller; the disk is its line 6
	.set TICKS_PER_MS, 1193		# of the timer

start:
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	$0x7000, %sp
	movw	%ax, %ss
	movl	COUNTER, %ebx
	cmpl	$MAGIC, COUNTER + 4
	je	greet
	movl	$FIRST, %ebx
	movl	$MAGIC, COUNTER + 4
greet:
	movl	$(0xf0000000 + tick), 8 * 4	# the timer's interrupt: F000:tick
	movb	$0x11, %al		# first interrupt controller: vectors from 8,
	outb	%al, $0x20
	movb	$8, %al
	outb	%al, $0x21
	movb	$4, %al
	outb	%al, $0x21
	movb	$1, %al
	outb	%al, $0x21
	movb	$0xfe, %al		# and nothing but the timer may interrupt
	outb	%al, $0x21
	movb	$0x34, %al		# the timer ticks once in a millisecond
	outb	%al, $0x43
	movb	$(TICKS_PER_MS & 0xff), %al
	outb	%al, $0x40
	movb	$(TICKS_PER_MS >> 8), %al
	outb	%al, $0x40
	movb	$'U', %al
	call	say
	movb	$'P', %al
	call	say
	call	say_number

again:
	movl	%ebx, COUNTER
	movb	$0xe0, %ch		# LBA, first disk
	call	write
.if DISKS > 1
	movb	$0xf0, %ch		# LBA, second disk
	call	write
.endif
	movb	%bl, %al
	andb	$(BATCH - 1), %al
	cmpb	$(BATCH - 1), %al
	jne	next
	movb	$0xe0, %ch
	call	flush
.if DISKS > 1
	movb	$0xf0, %ch
	call	flush
.endif
	movb	$'A', %al
	call	say
	movb	$'C', %al
	call	say
	movb	$'K', %al
	call	say
	call	say_number
next:
	incl	%ebx
	movw	$PAUSE_MS, %cx
	jcxz	again
1:	sti				# sleep until the timer ticks
	hlt
	cli
	loop	1b
	jmp	again

tick:
	pushw	%ax
	movb	$0x20, %al
	outb	%al, $0x20
	popw	%ax
	iret

write:					# number in ebx, disk in ch
	movl	%ebx, %eax
	andl	$0xff, %eax
	imull	$SPREAD, %eax, %esi	# LBA
	call	select
	movw	$TASK_FILE + 2, %dx
	movb	$1, %al			# one sector
	outb	%al, %dx
	movl	%esi, %eax
	incw	%dx
	outb	%al, %dx		# LBA 0..7
	shrl	$8, %eax
	incw	%dx
	outb	%al, %dx		# LBA 8..15
	shrl	$8, %eax
	incw	%dx
	outb	%al, %dx		# LBA 16..23
	movw	$TASK_FILE + 7, %dx
	movb	$0x30, %al		# WRITE SECTORS
	outb	%al, %dx
	call	idle
	movw	$TASK_FILE, %dx
	pushw	%cx
	movw	$128, %cx
	movl	%ebx, %eax
1:	outl	%eax, %dx
	loop	1b
	popw	%cx
	jmp	ended

flush:					# disk in ch
	call	select
	movw	$TASK_FILE + 7, %dx
	movb	$0xe7, %al		# FLUSH CACHE
	outb	%al, %dx

ended:					# until the interrupt is there; reading the status takes it back
1:	inb	$PIC, %al
	testb	$0x40, %al
	jz	1b
	jmp	idle

select:
	movb	$0x11, %al		# forget earlier interrupts,
	outb	%al, $PIC
	movb	$0x0a, %al		# and show requests when read
	outb	%al, $PIC
	movw	$TASK_FILE + 6, %dx
	movb	%ch, %al
	outb	%al, %dx

idle:					# until the disk is not busy
	movw	$TASK_FILE + 7, %dx
1:	inb	%dx, %al
	testb	$0x80, %al
	jnz	1b
	testb	$0x21, %al		# ERR, DF
	jz	2f
	movb	$'E', %al
	call	say
	movb	$'R', %al
	call	say
	call	say
	call	say_number
3:	hlt
	jmp	3b
2:	ret

say_number:				# " %08x\n" of ebx
	movb	$' ', %al
	call	say
	movl	%ebx, %esi
	movb	$8, %cl
1:	roll	$4, %esi
	movw	%si, %ax
	andb	$0x0f, %al
	addb	$'0', %al
	cmpb	$'9', %al
	jbe	2f
	addb	$('a' - '9' - 1), %al
2:	call	say
	decb	%cl
	jnz	1b
	movb	$10, %al

say:					# al
	pushw	%dx
	movw	$SERIAL + 5, %dx
	movb	%al, %ah
1:	inb	%dx, %al
	testb	$0x20, %al
	jz	1b
	movb	%ah, %al
	movw	$SERIAL, %dx
	outb	%al, %dx
	popw	%dx
	ret

	.org	0xfff0			# where an x86 begins
	jmp	start
	.org	0x10000
